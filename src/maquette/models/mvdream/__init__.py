"""MVDream and ImageDream: four views of an object from a sentence, or from a picture and a sentence."""

"""models/gamba of maquette."""

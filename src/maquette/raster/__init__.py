"""raster of maquette."""

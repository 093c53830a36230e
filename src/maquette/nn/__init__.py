"""nn of maquette."""

"""surface of maquette."""

"""training of maquette."""

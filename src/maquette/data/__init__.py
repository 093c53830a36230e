"""data of maquette."""

"""models of maquette."""

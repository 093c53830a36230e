"""cli of maquette."""

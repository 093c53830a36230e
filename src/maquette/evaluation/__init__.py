"""evaluation of maquette."""

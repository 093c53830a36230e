"""models/lgm of maquette."""

"""Any picture of one object -> a square cut-out of it, centred, as the generators of views want it."""

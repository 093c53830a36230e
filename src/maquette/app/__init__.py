"""Jobs, the HTTP API and the page of `maquette app`."""

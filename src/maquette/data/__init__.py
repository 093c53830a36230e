"""Rendered data sets: `maquette data render` writes them (`render_set`), `RenderedDataset` reads them."""

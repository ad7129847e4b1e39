"""`ExportHook`: it watches a training loop and exports what the forwards got."""

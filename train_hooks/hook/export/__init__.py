"""From staged micro-batches to durable steps, on the writer thread. No torch in here."""

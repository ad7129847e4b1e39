"""`kiseki steps`: metrics of steps, loss spikes and their explanation."""

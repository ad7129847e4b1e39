"""From what a forward got to the fetched rows that it consumed. Begin with `consumption`; it calls all the others."""

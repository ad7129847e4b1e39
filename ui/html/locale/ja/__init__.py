"""The Japanese of the pages' sentences, one module a page."""

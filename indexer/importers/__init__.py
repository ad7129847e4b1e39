"""`kiseki import`: exports that no training wrote. No module here touches an index."""

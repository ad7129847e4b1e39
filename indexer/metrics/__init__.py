"""`kiseki import metrics`: numbers of a training that its export does not hold."""

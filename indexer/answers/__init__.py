"""What every answer has: its coverage, cursors, marks in text, plain data, a deadline, and words for what is not there."""

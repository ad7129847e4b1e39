"""What lies below RUN/index, opened for reading."""

"""Which fetched micro-batch is it that a forward got?"""

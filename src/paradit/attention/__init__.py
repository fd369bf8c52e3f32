"""What happens between a block's queries, keys and values and its attended values."""

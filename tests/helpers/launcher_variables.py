"""Variables of a launcher, as the second of two ranks finds them."""

MEET = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
SECOND = {"RANK": "1", "WORLD_SIZE": "2", **MEET}

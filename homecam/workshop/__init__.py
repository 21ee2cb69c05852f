"""How the embedded backbone was made: captions and lessons of facts, and the training that turns them into `model/`."""

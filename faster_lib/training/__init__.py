"""The two stages of training and the evaluation, and the machinery that they run on."""

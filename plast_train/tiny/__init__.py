"""The tiny LVLM: a small world of drawn images, questions in seven languages, a model trained on them."""

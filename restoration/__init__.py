"""From a person's picture to a restored one: place and polarity, the pipeline, confidence, exported networks."""

"""What the scripts, the engine and the tests share: each module does one thing and knows neither `models` nor `datasets`."""

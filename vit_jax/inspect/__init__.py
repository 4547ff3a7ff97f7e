"""Looking inside a model: arrays first, pictures second."""

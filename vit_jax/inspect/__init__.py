"""Maps and boxes from inside a trained model: arrays first, pictures second."""

"""Reading, recognising, adapting and writing weights in our own and foreign formats."""

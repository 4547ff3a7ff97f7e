"""Published weights: names, facts, mirrors and the download cache."""

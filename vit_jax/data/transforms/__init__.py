"""Operations on one image, and chains of them written as text."""

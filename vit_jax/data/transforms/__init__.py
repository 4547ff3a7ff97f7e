"""Operations on images, and chains of operations written as text."""

"""Pages that open without a network: pictures, plots and text in one HTML file.

Every text is escaped where it enters a page: names of classes and files may hold
anything.
"""

"""data_build: from scientific archives and models to a dataset of `astrobio.schema`."""

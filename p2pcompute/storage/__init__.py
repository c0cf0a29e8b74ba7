"""Files of one instance: databases and the folder of blobs."""

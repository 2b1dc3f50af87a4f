"""Videos in, clips out: files, the index, transforms, data sets, and generated videos."""

"""Videos in, clips out: files, sampling, transforms, data sets."""

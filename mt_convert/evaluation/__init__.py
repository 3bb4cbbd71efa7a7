"""What a converted network does on images: accuracy, errors by cause, energy, other packages."""

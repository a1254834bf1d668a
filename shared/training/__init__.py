"""What the two training loops share. It may import torch; nothing else of `shared` does, or imports this."""

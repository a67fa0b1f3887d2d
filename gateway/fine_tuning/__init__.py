"""Files and fine-tuning jobs as the OpenAI API speaks of them."""

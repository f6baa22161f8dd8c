"""What the files of a bundle are called. Plain names: whoever needs them need not wait for torch."""

MODEL, WEIGHTS, LABELS, CARD = "model.onnx", "weights.safetensors", "labels.txt", "README.md"
CONFIG, TRAINING_WEIGHTS, SAMPLES = "training/config.yaml", "training/weights.safetensors", "training/samples.safetensors"
METRICS, DIAGNOSIS = "training/metrics.jsonl", "training/diagnosis.jsonl"
EXACT_MODEL, EXACT_TENSORRT_MODEL, EXACT_WEIGHTS = "model.exact.onnx", "model.exact.trt.onnx", "weights.exact.safetensors"
CERTIFICATE = "certificate.json"
EXACT_TRAINING_WEIGHTS, EXACT_METRICS = "training/exact.safetensors", "training/exact.metrics.jsonl"
PREPROCESSING = "none: raw pixels, uint8, N x C x H x W; normalisation is the first part of the graph"

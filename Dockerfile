# docker build -t hovernet .                               for the CPU
# docker build -t hovernet --build-arg TORCH_INDEX= .      for NVIDIA GPUs: the package index's own build of PyTorch
# docker run --rm --gpus=all --user="$(id -u)" -v "$PWD:/data" hovernet \
#     --gpu=0 --model_path=/opt/hovernet/pretrained/hovernet_fast_w025_20x.tar wsi --input_dir=slides --output_dir=out
FROM python:3.11-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# tini hands signals on, so that a run that is stopped ends its workers
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini=0.19.* libgl1=1.6.* libglib2.0-0=2.74.* \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/hovernet
COPY requirements.txt requirements-cluster.txt requirements-storage.txt ./
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url="$TORCH_INDEX"} \
    -r requirements.txt -r requirements-cluster.txt -r requirements-storage.txt
COPY . .

USER 65534
WORKDIR /data
ENTRYPOINT ["tini", "--", "python", "/opt/hovernet/run_infer.py"]
CMD ["--help"]

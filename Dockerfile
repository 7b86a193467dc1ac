# Label recordings in a container:
#   docker build -t radio-mae .
#   docker run --rm -v "$PWD:/data" radio-mae capture.sigmf-meta --weights radio_seg_vit_tiny
FROM python:3.12-slim
WORKDIR /radio-mae
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
# Any user may run it, as with --user: caches go where everybody may write.
ENV HOME=/tmp
WORKDIR /data
ENTRYPOINT ["python", "/radio-mae/main_segment.py"]

# The whole project in a container: `docker build -t salun . && docker run --rm -v "$PWD/out:/out" salun`
# builds the book and leaves its pages in out/. For a shell instead: `docker run --rm -it salun bash`.
FROM python:3.12-slim-bookworm

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends chromium git make rsync \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home reader && mkdir /out && chown reader /out
USER reader
WORKDIR /home/reader/salun

# Packages first: they change less often than the code.
COPY --chown=reader Makefile pyproject.toml requirements.lock setup.py README.md LICENSE ./
COPY --chown=reader salun_core/__init__.py salun_core/__init__.py
RUN make install

COPY --chown=reader . .
CMD ["sh", "-c", "make book && cp -r _build/html/. /out/"]

# café
FROM scratch
RUN echo café \
 # ÿþ
 && true
RUN echo é; true
RUN --mount=type=cache,target=/root/.m2 echo é

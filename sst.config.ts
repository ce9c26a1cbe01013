/// <reference path="./.sst/platform/config.d.ts" />
/**
 * The deployment: `npx sst deploy --stage production` runs vmferry's functions on AWS, `--stage production-edge` on
 * Cloudflare; both keep their truth in DynamoDB and S3. Read `run` as the table of contents; each part is a file of infra/.
 * What a stage's name decides is in infra/stage.ts, who may do what in infra/permissions.ts.
 *
 * The providers are pinned to the versions that this version of SST was built with. Run `npm run infra:check` after a change.
 */
export default $config({
  async app(input) {
    const { stageOf } = await import("./infra/stage.ts");
    const { cloud, kept } = stageOf(input.stage);
    return {
      name: "vmferry",
      // SST's own state is on AWS for both: DynamoDB and S3 are there in any case.
      home: "aws",
      protect: kept,
      removal: kept ? "retain" : "remove",
      providers: { aws: "7.20.0", ...(cloud === "cloudflare" ? { cloudflare: "6.15.0" } : {}) },
    };
  },

  async run() {
    const { settingsOf, stageOf } = await import("./infra/stage.ts");
    const { buildOnce } = await import("./infra/artifact.ts");
    const { createSecrets } = await import("./infra/secrets.ts");
    const { createStorage } = await import("./infra/storage.ts");
    const { createAlarms } = await import("./infra/alarms.ts");
    const stage = stageOf($app.stage);
    const settings = settingsOf(stage.cloud, process.env);
    buildOnce();

    const storage = createStorage(stage, settings);
    const secrets = createSecrets();

    if (stage.cloud === "cloudflare") {
      const { createEdge } = await import("./infra/edge.ts");
      const edge = createEdge({ settings, storage, secrets });
      createAlarms({ stage, settings, storage });
      return { url: edge.url, socketUrl: edge.socketUrl, table: storage.table, bucket: storage.bucket };
    }

    const { createSockets } = await import("./infra/sockets.ts");
    const { createApi } = await import("./infra/api.ts");
    const { createTimer } = await import("./infra/timer.ts");
    const sockets = createSockets({ stage, settings, storage, secrets });
    const api = createApi({ stage, settings, storage, secrets, sockets });
    const timer = createTimer({ stage, storage, secrets, sockets });
    createAlarms({ stage, settings, storage, running: { sockets, api, timer } });
    return { url: api.url, socketUrl: sockets.url, table: storage.table, bucket: storage.bucket };
  },
});

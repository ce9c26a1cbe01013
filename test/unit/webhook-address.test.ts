/** Where webhooks are never posted: every way of writing an inner address, and names that lead to one. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { addressKind, isReachable, type WebhookTargets, webhookUrl } from "#core/webhook-address";
import { checkedLookup } from "#functions/webhook-post-node";

const metadata = [
  "http://169.254.169.254/latest/meta-data",
  "https://169.254.169.254/",
  "https://2852039166/",
  "https://0xa9fea9fe/",
  "https://0251.0376.0251.0376/",
  "https://169.254.43518/",
  "https://169.254.169.254./",
  "https://１６９.254.169.254/",
  "https://[::ffff:169.254.169.254]/",
  "https://[::ffff:a9fe:a9fe]/",
  "https://[::169.254.169.254]/",
  "https://[64:ff9b::a9fe:a9fe]/",
  "https://[64:ff9b:1::a9fe:a9fe]/",
  "https://[2002:a9fe:a9fe::1]/",
  "https://[2001:0:a9fe:a9fe::1]/",
  "https://[fd00:ec2::254]/",
  "https://[fd20:ce::254]/",
  "https://[fe80::1]/",
  "https://[fec0::1]/",
  "https://[ff02::1]/",
  "https://[::]/",
  "https://0.0.0.0/",
  "https://0/",
  "https://100.100.100.200/",
  "https://168.63.129.16/",
  "https://192.0.0.192/",
  "https://224.0.0.1/",
  "https://255.255.255.255/",
  "https://metadata.google.internal/",
  "https://METADATA/",
  "https://instance-data/latest",
];
const inside = [
  "https://127.0.0.1/",
  "https://127.1/",
  "https://2130706433/",
  "https://0x7f.1/",
  "https://[::1]/",
  "https://localhost/",
  "https://LOCALHOST./",
  "https://10.0.0.1/",
  "https://172.31.255.255/",
  "https://192.168.1.1:8443/",
  "https://100.64.0.1/",
  "https://[fd12:3456::1]/",
];
const neverIn: Record<string, string[]> = {
  public: [
    ...inside,
    "https://api.localhost/",
    "https://db.internal/",
    "https://printer.local/",
    "https://intranet/",
    "https://1.0.0.10.in-addr.arpa/",
    "http://example.com/",
    "https://example.com:22/",
    "https://example.com:80/",
  ],
  private: ["http://example.com/", "http://intranet/", "http://8.8.8.8/", "http://[2606:4700::1111]/"],
};
const malformed = [
  "",
  "example.com",
  "/hook",
  "ftp://example.com/",
  "file:///etc/passwd",
  "javascript:alert(1)",
  "https://user@example.com/",
  "https://user:word@example.com/",
  "https://:word@example.com/",
  "https://169.254.169.254@example.com/",
  "https://example.com/#x",
  "https://example.com/#",
  "https://",
  "https://[::1",
  "https://256.256.256.256/",
];

const refusal = (url: string, targets: WebhookTargets) => {
  const checked = webhookUrl(url, targets);
  assert.ok("cause" in checked, `${url} is taken for ${targets}`);
  return checked.cause;
};

describe("URLs that nothing is posted to", () => {
  for (const targets of ["public", "private"] as const) {
    for (const url of metadata)
      test(`${targets}: ${url}`, () => {
        assert.match(refusal(url, targets), /link-local|metadata|within a network|plain http/);
      });
    for (const url of malformed) test(`${targets}: "${url}"`, () => void refusal(url, targets));
    for (const url of neverIn[targets] ?? []) test(`${targets}: ${url}`, () => void refusal(url, targets));
  }
  test("a metadata address is refused as one also where private ones are taken", () => {
    for (const url of metadata.filter((each) => !each.startsWith("http:")))
      assert.match(refusal(url, "private"), /link-local, reserved, a metadata/, url);
  });
});

describe("URLs that are posted to", () => {
  const taken: Record<string, [string, string][]> = {
    public: [
      ["https://example.com/hook?key=1", "https://example.com/hook?key=1"],
      ["https://EXAMPLE.com:443", "https://example.com/"],
      ["https://example.com:8443/", "https://example.com:8443/"],
      ["https://8.8.8.8/", "https://8.8.8.8/"],
      ["https://[2606:4700:4700::1111]/", "https://[2606:4700:4700::1111]/"],
      ["https://172.32.0.1/", "https://172.32.0.1/"],
      ["https://metadata-tools.example.com/", "https://metadata-tools.example.com/"],
    ],
    private: [
      ["http://localhost:9093/", "http://localhost:9093/"],
      ["http://127.0.0.1:9/", "http://127.0.0.1:9/"],
      ["http://10.1.2.3/hook", "http://10.1.2.3/hook"],
      ["http://[::1]:8080/", "http://[::1]:8080/"],
      ["http://[fd12::1]/", "http://[fd12::1]/"],
      ["https://intranet/", "https://intranet/"],
      ["https://db.internal:22/", "https://db.internal:22/"],
      ["https://example.com/", "https://example.com/"],
    ],
  };
  for (const targets of ["public", "private"] as const)
    for (const [asked, url] of taken[targets] ?? [])
      test(`${targets}: ${asked}`, () => assert.deepEqual(webhookUrl(asked, targets), { url }));
});

describe("addresses that names lead to", () => {
  const kinds: [string, string | null][] = [
    ["8.8.8.8", "public"],
    ["2606:4700::1", "public"],
    ["10.255.255.255", "private"],
    ["fd00::1", "private"],
    ["127.255.0.1", "loopback"],
    ["::1", "loopback"],
    ["::ffff:10.0.0.1", "refused"],
    ["::ffff:8.8.8.8", "refused"],
    ["64:ff9b::8.8.8.8", "refused"],
    ["fe80::1%eth0", "refused"],
    ["1.2.3", null],
    ["1.2.3.4.5", null],
    ["256.1.1.1", null],
    [":::", null],
    ["1:2:3:4:5:6:7", null],
    ["1:2:3:4:5:6:7:8:9", null],
    ["example.com", null],
    ["", null],
  ];
  for (const [text, kind] of kinds) test(`${text || "nothing"}: ${kind}`, () => assert.equal(addressKind(text), kind));

  test("what is no address is not reachable", () => assert.equal(isReachable("example.com", "private"), false));

  const look = (addresses: string[], targets: WebhookTargets, all: boolean) =>
    new Promise((resolve, reject) =>
      checkedLookup(targets, async () =>
        addresses.map((address) => ({ address, family: address.includes(":") ? 6 : 4 })),
      )("name", { all }, (error, address) => (error === null ? resolve(address) : reject(error))),
    );
  const refused = { code: "VMFERRY_ADDRESS_REFUSED" };

  test("a name is connected to at the very addresses that were checked", async () => {
    assert.equal(await look(["8.8.8.8"], "public", false), "8.8.8.8");
    assert.deepEqual(await look(["8.8.8.8", "2606:4700::1"], "public", true), [
      { address: "8.8.8.8", family: 4 },
      { address: "2606:4700::1", family: 6 },
    ]);
    assert.equal(await look(["10.0.0.1"], "private", false), "10.0.0.1");
  });
  test("a name that leads inside, or also inside, is refused whole", async () => {
    for (const all of [true, false]) {
      await assert.rejects(look(["127.0.0.1"], "public", all), refused);
      await assert.rejects(look(["8.8.8.8", "10.0.0.1"], "public", all), refused);
      await assert.rejects(look(["169.254.169.254"], "private", all), refused);
      await assert.rejects(look(["::ffff:169.254.169.254"], "private", all), refused);
      await assert.rejects(look([], "private", all), refused);
    }
  });
});

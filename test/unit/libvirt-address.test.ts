/** Where to connect, and how versions are written. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { LibvirtAddressError, parseLibvirtAddress } from "#libvirt/address";
import { formatVersion } from "#libvirt/version";

const nowhere = (): boolean => false;

test("addresses that name a socket", () => {
  assert.deepEqual(parseLibvirtAddress("/srv/a-sock", nowhere), { socketPath: "/srv/a-sock", uri: "qemu:///system" });
  assert.deepEqual(parseLibvirtAddress("qemu:///system?socket=/srv/b%20c", nowhere), {
    socketPath: "/srv/b c",
    uri: "qemu:///system",
  });
  assert.deepEqual(parseLibvirtAddress("qemu+unix:///session?socket=/srv/s", nowhere), {
    socketPath: "/srv/s",
    uri: "qemu:///session",
  });
});

test("the usual sockets, the modular daemon's first", () => {
  const virtqemud = "/run/libvirt/virtqemud-sock";
  const libvirtd = "/run/libvirt/libvirt-sock";
  for (const text of [undefined, "", "qemu:///system"]) {
    assert.equal(parseLibvirtAddress(text, () => true).socketPath, virtqemud);
    assert.equal(parseLibvirtAddress(text, (path) => path === libvirtd).socketPath, libvirtd);
    assert.equal(parseLibvirtAddress(text, nowhere).socketPath, libvirtd);
  }
});

test("addresses that cannot work are refused", () => {
  for (const bad of [
    "relative/sock",
    "qemu+ssh://other/system",
    "qemu://other/system",
    "qemu:///session",
    "qemu:///",
    "xen:///system",
    "qemu:///system?socket=relative",
  ]) {
    assert.throws(() => parseLibvirtAddress(bad, nowhere), LibvirtAddressError, bad);
  }
});

test("versions", () => {
  assert.equal(formatVersion(9_000_000), "9.0.0");
  assert.equal(formatVersion(7_002_022), "7.2.22");
  assert.equal(formatVersion(11_003_001), "11.3.1");
});

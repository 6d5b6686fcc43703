{
  description = "bcache in userspace: make, run, check and repair cached devices";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs = { self, nixpkgs }:
    let
      systems = [ "x86_64-linux" "aarch64-linux" ];
      each = make: nixpkgs.lib.genAttrs systems (system: make nixpkgs.legacyPackages.${system});
    in
    {
      packages = each (pkgs: {
        default = pkgs.rustPlatform.buildRustPackage {
          pname = "ubcache";
          version = "0.1.0";
          src = self;
          cargoLock.lockFile = ./Cargo.lock;
          cargoBuildFlags = [ "--package" "bcache-tools" ];
          # They want devices, kernels and Debian packages: ./tests/run.
          doCheck = false;
          # dmsetup stands in PATH of the unit; see nixosModules.default.
          installPhase = ''
            runHook preInstall
            patchShebangs packaging/install udev
            packaging/install / prefix=$out programs=target/${pkgs.stdenv.hostPlatform.rust.rustcTarget}/release \
              initramfs=dracut
            runHook postInstall
          '';
          meta = {
            license = pkgs.lib.licenses.gpl2Plus;
            mainProgram = "bcache";
            platforms = systems;
          };
        };
      });

      # services.udev and systemd take rules and units out of the package.
      nixosModules.default = { pkgs, ... }:
        let ubcache = self.packages.${pkgs.stdenv.hostPlatform.system}.default; in
        {
          environment.systemPackages = [ ubcache ];
          services.udev.packages = [ ubcache ];
          systemd.packages = [ ubcache ];
          boot.kernelModules = [ "dm_mod" ];
          systemd.services."bcache@".path = [ pkgs.lvm2.bin pkgs.kmod ];
        };
    };
}

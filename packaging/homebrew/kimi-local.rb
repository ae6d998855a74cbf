# The release workflow replaces the address, the version and the checksums (packaging/manifests.py).
class KimiLocal < Formula
  desc "Run Kimi Linear on your own machine"
  homepage "https://example.com/OWNER/kimi"
  version "0.2.0"
  license any_of: ["MIT", "Apache-2.0"]

  on_macos do
    on_arm do
      url "https://example.com/OWNER/kimi/releases/download/v0.2.0/kimi-0.2.0-aarch64-apple-darwin.tar.gz"
      sha256 "0000000000000000000000000000000000000000000000000000000000000000"
    end
    on_intel do
      url "https://example.com/OWNER/kimi/releases/download/v0.2.0/kimi-0.2.0-x86_64-apple-darwin.tar.gz"
      sha256 "0000000000000000000000000000000000000000000000000000000000000000"
    end
  end

  on_linux do
    on_arm do
      url "https://example.com/OWNER/kimi/releases/download/v0.2.0/kimi-0.2.0-aarch64-unknown-linux-gnu.tar.gz"
      sha256 "0000000000000000000000000000000000000000000000000000000000000000"
    end
    on_intel do
      url "https://example.com/OWNER/kimi/releases/download/v0.2.0/kimi-0.2.0-x86_64-unknown-linux-gnu.tar.gz"
      sha256 "0000000000000000000000000000000000000000000000000000000000000000"
    end
  end

  # Moonshot AI's command-line client is also named kimi.
  def install
    bin.install "kimi" => "kimi-local"
    generate_completions_from_executable(bin/"kimi-local", "completions", "--name", "kimi-local")
    system bin/"kimi-local", "man", "--name", "kimi-local", man1
    pkgshare.install "docs", "LICENSES-CRATES.txt", "THIRD-PARTY.md"
  end

  def caveats
    <<~EOS
      The command is kimi-local. It runs a small demonstration model until a model file is given.
    EOS
  end

  service do
    run [opt_bin/"kimi-local", "serve"]
    keep_alive crashed: true
    log_path var/"log/kimi-local.log"
    error_log_path var/"log/kimi-local.log"
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/kimi-local --version")
    system bin/"kimi-local", "generate", "--no-cache", "--max-tokens", "8", "Who keeps the museum?"
  end
end
